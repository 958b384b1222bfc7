"""What an HTML page holds, read back; its tags must be balanced."""

from html.parser import HTMLParser


class BalancedPage(HTMLParser):
    """A page's tags, all of its text, the text of every cell, and what is marked as inserted or deleted."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.cells, self.marked = [], set(), "", [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "meta":
            self.open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if "td" in self.open:
            self.cells[-1] += data
        if self.open and self.open[-1] in ("ins", "del"):
            self.marked.append((self.open[-1], data))
