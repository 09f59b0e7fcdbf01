"""What a run leaves behind and how it is read: record schema, statistics, tables, figures, pages.

This wing reads run folders only. It needs no model and no torch, so a report can be built
on a laptop from a folder that was copied there.
"""
