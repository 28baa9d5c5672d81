"""What both dashboards share: who may look, the page's frame and look, plots, words for numbers.

A side gives a template and a function that reads its folder; nothing here knows what is shown.
"""
