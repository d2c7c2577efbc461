"""The command line, `haystack-distill`."""


def main() -> None:
    """Run the command line on `sys.argv` and exit."""
    from haystack_distill.cli.app import app

    app(prog_name="haystack-distill")
