"""Operators in forms that every engine has, forward and backward.

Each module knows a kind of operators and lists its forms in two tables: ``FORMS`` of PyTorch functions, which are
replaced before autograd sees them, and ``DECOMPOSITIONS`` of ATen operators, which are replaced while a program is
traced. :mod:`pfl_mobile.programs.closed_forms` puts the tables of all together.
"""
