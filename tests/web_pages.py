"""What a page has to be so that it can be sent."""

from html.parser import HTMLParser


class Tags(HTMLParser):
    """Collects a page's tags with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))


def assert_can_be_sent(text: str, pictures: int) -> None:
    """Check that a page needs nothing else, and that its pictures have words."""
    tags = Tags(text).tags
    images = [attributes for tag, attributes in tags if tag == "img"]
    assert len(images) == pictures
    for attributes in images:
        assert attributes["src"].startswith(("data:image/png;base64,", "data:image/jpeg;base64,"))
        assert len(attributes["alt"].split()) > 3
    assert not any("href" in attributes for _, attributes in tags) and "url(" not in text
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in tags}
