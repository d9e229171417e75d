"""A page about runs that have trained: launch/report.py.

flags.py      its flags
runs.py       what the folders of the runs tell
curves.py     metrics.jsonl as curves, and a curve of so many points as can be seen
words.py      what the figures are called, and how they are measured
tables.py     what is told in words: the head, results, warnings, and what differs
charts.py     which charts there are
drawing.py    a chart as a PNG, light and dark
sections.py   what the page is made of
pictures/     what a run's model makes of data that it wasn't trained on
page.py       all sections as one HTML file, written whole or not at all
"""
