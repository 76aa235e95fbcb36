"""docs/book.md has every listing and exercise of chapter 11, and what it names exists."""

import ast
import re


def test_every_listing_is_there_and_what_it_names_exists(repository):
    page = repository / "docs" / "book.md"
    text = page.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (11\.\d+) \|(.*)$", text, flags=re.MULTILINE)
    assert [number for number, _ in rows] == [f"11.{number}" for number in range(1, 24)]
    assert re.findall(r"^\| (11\.12\.\d):", text, flags=re.MULTILINE) == ["11.12.1", "11.12.2", "11.12.3"]
    links = re.findall(r"\[`([\w.]+)`\]\((\S+\.py)\)", text)
    assert len(links) > 20
    for name, file in links:
        body = ast.parse((page.parent / file).read_text(encoding="utf-8")).body
        for part in name.split("."):
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"{file} has no {name}"
            body = getattr(found[0], "body", [])
