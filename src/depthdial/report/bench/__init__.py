"""The page of a bench: measured passes of a model beside what the machine can do."""
