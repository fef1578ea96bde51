"""How the aggregator takes a mean of updates: rows that stream, rules, robust and private ones.

A merge rule of your own is a subclass of ``MergeRule`` with ``@rule("name", ...)``, see ``rules.py``.
"""

from pfl_mobile.merge.private import PrivateRule
from pfl_mobile.merge.rules import Average, Mean, MergeRule, RuleEntry, create_rule, rule, rule_entries

__all__ = [
    "Average",
    "Mean",
    "MergeRule",
    "PrivateRule",
    "RuleEntry",
    "create_rule",
    "rule",
    "rule_entries",
]
