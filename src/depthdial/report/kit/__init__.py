"""What all pages are made of: style, tables, labels, the page."""
