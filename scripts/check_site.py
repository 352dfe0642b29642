"""Says which pages of a built site would ask another host for something: `python scripts/check_site.py build/site`.

Links that a reader follows are fine. Scripts, styles, fonts, pictures and frames must come with the site."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

LOADED_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
"""Of `<link rel=...>`: those that a browser follows by itself."""
_ELSEWHERE = re.compile(r"\s*(?:https?:)?//", re.I)
_IN_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s;]+)", re.I)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        targets = [given.get(name, "") for name in ("src", "poster", "data")]
        targets += [part.strip() for part in given.get("srcset", "").split(",")]
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").lower().split()):
            targets.append(given.get("href", ""))
        self.asked += [target for target in targets if _ELSEWHERE.match(target)]
        self.asked += _IN_STYLE.findall(given.get("style", ""))


def requests(path: Path) -> list[str]:
    """Addresses on other hosts that a browser would load with this page or style sheet."""
    text = path.read_text("utf-8")
    if path.suffix == ".css":
        return _IN_STYLE.findall(text)
    page = _Page()
    page.feed(text)
    inner = "".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.S))
    return page.asked + _IN_STYLE.findall(inner)


def main(folder: Path) -> int:
    """0 where no page asks another host; else 1, with a line for each address."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".html", ".css"))
    if not files:
        print(f"{folder} has no pages", file=sys.stderr)
        return 1
    found = [(path, address) for path in files for address in requests(path)]
    for path, address in found:
        print(f"{path} would load {address}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
