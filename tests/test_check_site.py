"""What `make site` refuses: pages that a browser would load something from another host with."""

from __future__ import annotations

from pathlib import Path

import pytest

import check_site


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("a.html", '<script src="https://a.example/x.js"></script>', ["https://a.example/x.js"]),
        ("a.html", '<script src="./x.js"></script><a href="https://a.example/">read</a>', []),
        ("a.html", '<link rel="stylesheet" href="//a.example/x.css">', ["//a.example/x.css"]),
        ("a.html", '<link rel="next" href="https://a.example/">', []),
        ("a.html", '<img src="x.png" srcset="x.png 1x, https://a.example/x.png 2x">', ["https://a.example/x.png 2x"]),
        ("a.html", "<style>@import 'https://a.example/f.css';</style>", ["https://a.example/f.css"]),
        ("a.html", '<p style="background:url(https://a.example/p)">', ["https://a.example/p"]),
        ("a.html", '<img src="data:image/png;base64,AA//">', []),
        ("a.css", "@font-face{src:url(https://a.example/f.woff2)}", ["https://a.example/f.woff2"]),
        ("a.css", "a{background:url(data:image/svg+xml;utf8,http://www.w3.org/2000/svg)}", []),
    ],
)
def test_what_a_page_loads_from_other_hosts_is_found(tmp_path: Path, name: str, text: str, asked: list[str]) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert check_site.requests(tmp_path / name) == asked
    assert check_site.main(tmp_path) == bool(asked)


def test_a_folder_without_pages_is_not_a_site(tmp_path: Path) -> None:
    assert check_site.main(tmp_path) == 1
