"""Pure: from what is there to what to do and what to say."""
