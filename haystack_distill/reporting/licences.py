"""Identifiers of licences and codes of languages that the Hugging Face hub accepts in a model card."""

import difflib
import re

from haystack_distill.errors import DistilError

# https://huggingface.co/docs/hub/repositories-licenses
_IDENTIFIERS = """
apache-2.0 mit openrail openrail++ bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0
cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0
cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl
lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
LICENCES = frozenset(_IDENTIFIERS.split())


def require_licence(licence: str | None) -> None:
    """Check that the hub has an identifier for a licence.

    Raises:
        DistilError: It has none; the message names the most similar one.
    """
    if licence is None or licence in LICENCES:
        return
    near = difflib.get_close_matches("-".join(licence.lower().split()), LICENCES, n=1)
    hint = f'did you mean "{near[0]}"' if near else 'give its identifier, such as "apache-2.0"'
    raise DistilError(f'the hub has no licence {licence!r}: {hint} (a licence without an identifier is "other")')


def require_language(language: str | None) -> None:
    """Check that a language is a code that the hub accepts.

    Raises:
        DistilError: It is not.
    """
    if language is not None and not re.fullmatch(r"[a-z]{2,3}|code|multilingual", language):
        raise DistilError(
            f'language must be a code of two or three letters, such as "en", or "multilingual", not {language!r}'
        )
