"""A user study: pairs of clips, the page that shows them, and what the votes say."""
