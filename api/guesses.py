"""How many rows of a step guesses take: what the scheduler allows, and the budget counts."""

#: Rows of a step up to which guesses are added: a few rows more cost little while weights are what a step waits for.
GUESSING_ROWS = 8
#: Tokens of all sequences that a draft runs in a step before it guesses; of a longer text it runs a part in each step.
DRAFT_ROWS = 512
