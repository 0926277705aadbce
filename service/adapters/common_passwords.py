"""Well-known passwords: the frequency list of zxcvbn, without the rest of that library."""

from __future__ import annotations

import importlib.util
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path

SEPARATOR = "\n"


class CommonPasswords:
    """A container of words in lower case, kept as a text for each initial: 30,000 in 240 kB, found in microseconds.

    A set of them takes 4 MB; and few objects are shared by forked processes, whose reference counts would copy the
    pages of many small ones.
    """

    def __init__(self, words: list[str]) -> None:
        self._texts: dict[str, str] = {}
        for initial, same in groupby(sorted(words), key=itemgetter(0)):
            self._texts[initial] = SEPARATOR + SEPARATOR.join(same) + SEPARATOR

    def __contains__(self, word: object) -> bool:
        if not isinstance(word, str) or not word or SEPARATOR in word:
            return False
        return f"{SEPARATOR}{word}{SEPARATOR}" in self._texts.get(word[0], "")


@cache
def common_passwords() -> CommonPasswords:
    """Return the list, read once: call it before processes are forked.

    Only the module of the lists is run, and forgotten: importing zxcvbn builds dictionaries of 16 MB.
    """
    library = importlib.util.find_spec("zxcvbn")
    if library is None or not library.submodule_search_locations:
        msg = "zxcvbn is not installed"
        raise ModuleNotFoundError(msg)
    path = Path(library.submodule_search_locations[0], "frequency_lists.py")
    spec = importlib.util.spec_from_file_location("frequency_lists", path)
    if spec is None or spec.loader is None:
        msg = "zxcvbn has no frequency lists"
        raise ModuleNotFoundError(msg)
    lists = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lists)
    return CommonPasswords([word.casefold() for word in lists.FREQUENCY_LISTS["passwords"]])
