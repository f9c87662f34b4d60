"""Shows pages of documentation: prints them."""

import re


def get_pager():
    return plain_pager


def plain(text):
    """The text without overstriking, which stands for bold type."""
    return re.sub(".\b", "", text)


def plain_pager(text, *_):
    print(plain(text))


pipe_pager = tempfile_pager = tty_pager = plain_pager
