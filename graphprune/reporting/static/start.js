"use strict";

function save(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function copy(button, block) {
  try {
    await navigator.clipboard.writeText(block.textContent);
    button.textContent = "Copied";
  } catch {
    window.getSelection().selectAllChildren(block); // a page from a file may not write: select it instead
    button.textContent = "Selected";
  }
}

theme.begin();
for (const figure of document.querySelectorAll("figure.chart")) drawChart(figure);
for (const root of document.querySelectorAll(".chart.coupling")) drawCoupling(root);
for (const block of document.querySelectorAll(".block")) {
  const text = block.querySelector("pre");
  const [copying, saving] = [block.querySelector("[data-copy]"), block.querySelector("[data-save]")];
  copying.addEventListener("click", () => copy(copying, text));
  saving?.addEventListener("click", () => save(saving.dataset.save, text.textContent));
}
