"""`python -m haystack_distill` is `haystack-distill`."""

from haystack_distill.cli import main

if __name__ == "__main__":
    main()
