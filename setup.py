"""The README as a package index shows it: without images, and links to files of the checkout."""

import re
from pathlib import Path

from setuptools import setup

text = Path(__file__).with_name("README.md").read_text("utf-8")
text = re.sub(r"!\[[^]]*\]\([^)]*\)\n\n(\*[^*]+\*\n)?", "", text)  # with the lines below them
text = re.sub(r"\[([^]]+)\]\((?!https?:)[^)]*\)", r"\1", text)
setup(long_description=text, long_description_content_type="text/markdown")
