"""report.html and comparison.html: Python gathers the numbers, the templates hold the words and the markup."""
