"""Runs of the published recipes at the scale of tiny models, step by step beside a second implementation.

`recording` performs a recipe and keeps which rows (and masks) made each step; `reference` is the second
implementation, in plain torch: it shares the model's files, the tokenizer, the data files and that order with the
package, and nothing else.
"""
