"""The text of an answer taken apart: thoughts, words and function calls, as each family of models writes them."""
