"""Tile planning: which legal tile segments given frames fastest.

`planner` ranks tiles by arithmetic within a memory budget; `measured` times the few best on the backend that runs them
and keeps the times, which then decide between tiles that were measured.
"""
