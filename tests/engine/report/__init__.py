"""The page about runs that have trained."""
