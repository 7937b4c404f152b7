"""Homes of every kind of file, made once for all tests that spoil them."""

import pytest
from crashes.spoiling import Judge


@pytest.fixture(scope="package")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(tmp_path_factory.mktemp("spoiled"))
