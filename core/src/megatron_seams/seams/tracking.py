"""``tracking`` of a manifest: references to upstream's work on what the seam builds."""

import re
from typing import Any, Final

import attrs

_ISSUE: Final = re.compile(r"([A-Za-z0-9-]+/[A-Za-z0-9._-]+)#([1-9][0-9]*)\Z")
_URL: Final = re.compile(
    r"https://[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:[0-9]+)?(/[\w./~%?=&#+:@,-]*)?\Z"
)


@attrs.frozen(kw_only=True)
class Reference:
    """A place where upstream's work can be followed.

    Attributes:
        text: As the manifest writes it, ``NVIDIA/Megatron-LM#7231``.
        url: Its address; None for words, which only a manifest's plain text may be.
    """

    text: str
    url: str | None = None

    @property
    def line(self) -> str:
        """The reference and its address, as one line of text."""
        return self.text if self.url in (None, self.text) else f"{self.text} {self.url}"


def references(tracking: str | tuple[str, ...]) -> tuple[Reference, ...]:
    """The references of ``[upstream] tracking``, each once; a plain text is one."""
    listed = (tracking,) if isinstance(tracking, str) else dict.fromkeys(tracking)
    return tuple(Reference(text=text, url=_url(text)) for text in listed if text.strip())


def listed_references(_: Any, __: Any, value: str | tuple[str, ...]) -> None:
    """Hold each item of a list to a reference with an address; a plain text is left as it is."""
    for text in () if isinstance(value, str) else value:
        if _url(text) is None:
            message = (
                "expected references like NVIDIA/Megatron-LM#7231, or addresses that begin with "
                f"https://; found {text!r}"
            )
            raise ValueError(message)


def _url(text: str) -> str | None:
    if _URL.match(text):
        return text
    issue = _ISSUE.match(text)
    # GitHub forwards from an issue's address to the pull request of that number.
    return f"https://github.com/{issue[1]}/issues/{issue[2]}" if issue else None
