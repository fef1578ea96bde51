"""Data of many users: messages or numbers, from a registered dataset or a file of one's own.

>>> from pfl_mobile import data
>>> sotu = data.get("sotu")                # downloads once, then reads the cache
>>> mine = data.load("messages.jsonl")     # {"user": "ann", "text": "see you there"}
>>> parts = data.split(sotu, test_users=10, seed=0)
>>> users = data.population("synthetic", alpha=1.0)   # for a study, of any dataset
"""

from __future__ import annotations

from pfl_mobile.data.fetch import get, load, population
from pfl_mobile.data.populations import (
    ArrayPopulation,
    GeneratedPopulation,
    Groups,
    Population,
    Rows,
    TextPopulation,
)
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
from pfl_mobile.data.user_groups import groups_from, quartiles
from pfl_mobile.data.usertext import Left, Message, UserText
from pfl_mobile.files.cache_dir import cache_dir
from pfl_mobile.rows import UserSplit, split_texts

__all__ = [
    "ArrayDataset",
    "ArrayPopulation",
    "Dataset",
    "GeneratedPopulation",
    "Generator",
    "Groups",
    "Left",
    "Message",
    "Population",
    "Progress",
    "PublishedDataset",
    "RegisteredDataset",
    "Rows",
    "Split",
    "TextPopulation",
    "UserSplit",
    "UserText",
    "cache_dir",
    "find",
    "get",
    "groups_from",
    "load",
    "names",
    "population",
    "quartiles",
    "register",
    "split",
    "split_texts",
    "summary",
]
