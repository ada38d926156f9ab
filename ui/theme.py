"""How the page looks: a calm theme with the system's own fonts, a style sheet and one script."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

FOLDER = Path(__file__).resolve().parent
CSS = FOLDER / "page.css"
SCRIPT = FOLDER / "page.js"
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif"]
INPUT_BORDER, INPUT_BORDER_DARK = "#8492a6", "#66758c"
"""Contrast 3 to 1 against the field and its surroundings, as WCAG requires for field borders."""
CODE_FONTS = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Gradio's plain theme in teal and slate. Fonts are names, so nothing is fetched."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.slate,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        font=FONTS,
        font_mono=CODE_FONTS,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_500",
        block_info_text_color="*neutral_500",
        block_title_text_color="*neutral_700",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        block_label_text_weight="500",
        block_title_text_weight="600",
        input_border_width="1px",
        input_border_color=INPUT_BORDER,
        input_border_color_dark=INPUT_BORDER_DARK,
        input_background_fill="white",
        input_background_fill_dark="*neutral_800",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )


def head() -> str:
    """The page's script, inline: clips of a row run in step."""
    return f"<script>{SCRIPT.read_text(encoding='utf-8')}</script>"
