"""How the encoder learns without labels. The only room that imports Lightning."""
