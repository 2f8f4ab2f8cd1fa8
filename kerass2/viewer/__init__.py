"""The local page of kerass2.view: its server, and what it shows of a prediction, data or a run.

pages/ holds the page itself, with Leaflet and uPlot as their authors publish them: it works without
a network.
"""
