"""Every op behind one small table: plain torch first, faster twins beside it."""
