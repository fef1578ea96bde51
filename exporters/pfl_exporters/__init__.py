"""Turn a personalized PyTorch model into verified on-device training artifacts (``pfl-export``)."""
