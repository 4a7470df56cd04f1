"""How the page looks: its colours, its columns, and what a narrow window folds away.

What this module does not know: what stands on the page.
"""

import gradio as gr

# No web fonts: they would be fetched from elsewhere.
THEME = gr.themes.Default(
    primary_hue="blue",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
).set(body_text_color_subdued="*neutral_600")  # the default has too little contrast for WCAG
# Gradio's button that adds to a gallery is a button around an input, which screen readers cannot
# tell apart. Several pictures can be chosen at once instead. In one column the pictures and the
# conversation are lower, so that a phone has the question in view.
CSS = """
.icon-button:has(input[type=file]) { display: none; }
.parts { display: grid; grid-template-columns: minmax(0, 1fr); align-items: start; }
@media (min-width: 768px) {
  .parts { grid-template: auto 1fr / minmax(0, 1fr) minmax(0, 2fr); }
  .chat { grid-area: 1 / 2 / span 2; }
}
@media (max-width: 767px) {
  .pictures { height: 200px !important; }
  .pictures .thumbnail-item { height: 180px; aspect-ratio: auto; }
  .pictures img { height: 100%; object-fit: contain; }
  .conversation { height: 280px !important; }
}
"""
# In a window of one column the settings stand below the chat, folded away.
FOLDED_IF_NARROW = "() => ({ __type__: 'update', open: window.innerWidth >= 768 })"
BUTTON = 130  # pixels at least, which the longest word takes
