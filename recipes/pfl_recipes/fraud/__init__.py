"""Fraud: card payments that are not the customer's."""
