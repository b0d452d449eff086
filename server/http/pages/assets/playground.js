// The playground: a page to try the tiers.
import { html, render } from "./ui.js";

const main = document.getElementById("main");
if (main) render(html`<h1>Playground</h1>`, main);
