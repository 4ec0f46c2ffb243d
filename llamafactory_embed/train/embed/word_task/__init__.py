"""`stage: word-task`: predict a label of every word, to probe a model or to tag with it."""
