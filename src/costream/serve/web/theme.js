// Light, dark, or as the system says.

const NEXT = { "": "dark", dark: "light", light: "" };

export function startTheme(button) {
  const root = document.documentElement;
  const show = (theme) => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
    button.title = `Light or dark: ${theme || "as the system says"}`;
  };
  show(remembered());
  button.addEventListener("click", () => {
    const theme = NEXT[remembered()];
    localStorage.setItem("theme", theme);
    show(theme);
  });
}

function remembered() {
  const theme = localStorage.getItem("theme") ?? "";
  return theme in NEXT ? theme : "";
}
