"""A page about runs that have trained: launch/report.py.

sections.py   what the page is made of
"""
