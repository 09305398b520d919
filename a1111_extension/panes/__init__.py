"""The four panes of the tab. Each is built inside the page that is being made, and knows only its ui."""
