"""A remedy that names a command names one that exists: it is read at the worst of times."""

import re
from pathlib import Path

from node.cli.main import NOUNS

SOURCES = sorted(Path(__file__).parents[3].glob("node/**/*.py"))
COMMAND = re.compile(r"mend=f?\"olnode ([a-z][a-z-]*)")


def test_every_mend_that_begins_with_a_command_names_a_real_one() -> None:
    named = {
        (path.name, noun) for path in SOURCES for noun in COMMAND.findall(path.read_text("utf-8"))
    }
    assert len(named) > 10, "the search finds what is there"
    assert [found for found in named if found[1] not in NOUNS] == []
