"""report.html and comparison.html, section by section."""
