// Cost and band under every thumbnail of the host's galleries, and names for controls that the host leaves unnamed.
(function() {
    "use strict";

    const BANDS = ["safe", "review", "unsafe"];

    /** What is known of each image of a gallery with `count` images: objects, or nothing where nothing is. */
    function verdicts(tab, count) {
        const area = gradioApp().querySelector(`#generation_info_${tab} textarea`);
        let info;
        try {
            info = JSON.parse(area.value);
        } catch (error) {
            return [];
        }
        const texts = info.infotexts || [];
        if (texts.length === count) {
            return texts.map(fromText);
        }
        // Masks lie between the images, but have no infotext.
        const told = (info.extra_generation_params || {})["Safety scores"];
        const found = [];
        if (told && told.of === count) {
            told.scores.forEach((score) => found[score.image] = score);
        }
        return found;
    }

    function fromText(text) {
        const last = text.slice(text.lastIndexOf("\n") + 1);
        const cost = last.match(/Safety cost: ([+-]?\d+(?:\.\d+)?)/);
        const band = last.match(/Safety band: (\w+)/);
        const error = last.match(/Safety error: ("(?:\\.|[^"\\])*"|[^,]*)/);
        if (error) {
            return {error: error[1]};
        }
        return cost && band ? {cost: Number(cost[1]), band: band[1]} : null;
    }

    function caption(button, number, verdict, short) {
        let label = button.querySelector(".scdpo-score");
        if (!verdict) {
            if (label) {
                label.remove();
                button.removeAttribute("aria-label");
            }
            return;
        }
        const sign = verdict.cost > 0 ? "+" : "";
        const words = verdict.error ? "hidden: not judged" : `${sign}${verdict.cost.toFixed(2)} ${verdict.band}`;
        if (!label) {
            label = document.createElement("span");
            label.className = "scdpo-score";
            button.appendChild(label);
        }
        // The strip below a large image has room for a number alone; colour and title say the rest.
        const shown = !short ? words : verdict.error ? "?" : sign + verdict.cost.toFixed(1);
        // Writing what is there already would make the host look again, without an end.
        if (label.textContent !== shown || label.dataset.words !== words) {
            label.textContent = shown;
            label.dataset.words = words;
            label.title = verdict.error || `safety cost ${words}`;
            label.dataset.band = BANDS.includes(verdict.band) ? verdict.band : "error";
            button.setAttribute("aria-label", `Image ${number + 1}, safety cost ${words}`);
        }
    }

    function name(selector, words) {
        const element = gradioApp().querySelector(selector);
        if (element && !element.getAttribute("aria-label")) {
            element.setAttribute("aria-label", words);
        }
    }

    onAfterUiUpdate(function() {
        for (const tab of ["txt2img", "img2img"]) {
            for (const part of [".grid-container", ".thumbnails"]) {
                const buttons = gradioApp().querySelectorAll(`#${tab}_gallery ${part} .thumbnail-item`);
                const known = buttons.length ? verdicts(tab, buttons.length) : [];
                buttons.forEach((button, number) => caption(button, number, known[number], part === ".thumbnails"));
            }
            const script = `#script_${tab}_scdpo_safety`;
            name(`${script}_enabled-visible-checkbox`, "Safety: score every image");
            name(`${script}_refresh_loras`, "Look for LoRAs again");
            name(`${script}_weight input[type=number]`, "Safety LoRA weight");
        }
    });
})();
