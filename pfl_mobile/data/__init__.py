"""Data of many users: messages or numbers, from a registered dataset or a file of one's own.

>>> from pfl_mobile import data
>>> sotu = data.get("sotu")                # downloads once, then reads the cache
>>> mine = data.load("messages.jsonl")     # {"user": "ann", "text": "see you there"}
>>> parts = data.split(sotu, test_users=10, seed=0)
>>> users = data.population("synthetic", alpha=1.0)   # for a study, of any dataset
"""

from __future__ import annotations

from pfl_mobile.data.fetch import get, load, population
from pfl_mobile.data.registry import (
    ArrayDataset,
    Dataset,
    Generator,
    Progress,
    PublishedDataset,
    RegisteredDataset,
    find,
    names,
    register,
)
from pfl_mobile.data.split import Split, split
from pfl_mobile.data.tables import summary
from pfl_mobile.data.usertext import Left, Message, UserText
from pfl_mobile.files.cache_dir import cache_dir
from pfl_mobile.rows import UserSplit, split_texts

__all__ = [
    "ArrayDataset",
    "Dataset",
    "Generator",
    "Left",
    "Message",
    "Progress",
    "PublishedDataset",
    "RegisteredDataset",
    "Split",
    "UserSplit",
    "UserText",
    "cache_dir",
    "find",
    "get",
    "load",
    "names",
    "population",
    "register",
    "split",
    "split_texts",
    "summary",
]
