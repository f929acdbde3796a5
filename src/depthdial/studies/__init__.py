"""All steps of one question in one folder that can be resumed."""
