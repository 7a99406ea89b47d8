"""What a page for people is made of: text made safe, pictures inside the file, one look for light and dark."""
