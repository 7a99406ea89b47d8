"""Label as you go: ask a person about few images, learn from the answers, say what accuracy to expect."""
