"""What our HTML pages are made of: `html` pieces and the sheet, `words` figures as text, `plots` drawings."""
