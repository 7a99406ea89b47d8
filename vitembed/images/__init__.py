"""Files to pixels: finding, decoding, preprocessing, caching and augmenting images."""
