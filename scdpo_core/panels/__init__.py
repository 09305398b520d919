"""What the doors' pages show, as HTML made of the core's values: no host, no gradio, no state.

Every panel is a pure function to a piece of HTML whose look is `panels.css`; images are inside, so that
nothing has to be served.
"""
