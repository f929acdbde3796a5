"""The page of an evaluation: scores of tasks by depth."""
