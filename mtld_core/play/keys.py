"""Which keys press which buttons, and the page's script that makes keys, mouse and gamepad hold them down."""

WORDS = {
    "UP": "ArrowUp KeyW",
    "DOWN": "ArrowDown KeyS",
    "LEFT": "ArrowLeft KeyA",
    "RIGHT": "ArrowRight KeyD",
    "FIRE": "Space",
    "NOOP": "KeyN",
}
SIGNS = {
    "ArrowUp": "↑",
    "ArrowDown": "↓",
    "ArrowLeft": "←",
    "ArrowRight": "→",
    "Space": "space",
    "Period": ".",
}


def keys_of(names, ways):
    """For each action's name a list of key codes (`KeyboardEvent.code`); the n-th also has the digit n.

    ways: {number of an action: "UP", "DOWN", "LEFT" or "RIGHT"}, which way it moves what it moves. Where no
    action is called so, the first one that moves that way has those keys, before its own: Pong's paddle goes
    up by RIGHT.
    """
    keys, taken = [], set(names)
    for i, name in enumerate(names):
        words, way = WORDS.get(name, ""), ways.get(i)
        if way and way not in taken:
            words = f"{WORDS[way]} {words}"
            taken.add(way)
        digits = [f"Digit{(i + 1) % 10}"] if i < 10 else []
        keys.append(words.split() + digits)
    return keys


# What is held down is told to the kernel in a text field: how many presses there were while the panel was
# live, the step that the page shows, the number of the newest button, and those of all that are down. While
# it is paused a press is a click, and another one each time that the picture came. A former panel's script
# is replaced.
SCRIPT = """<script>
(() => {
  window.mtldKeys?.abort()
  const own = window.mtldKeys = new AbortController()
  const FIRST = 350, NEXT = 80  // ms until a held button clicks again
  const PAD = [  // key, axis and its sign, button
    ['ArrowUp', 1, -1, 12], ['ArrowDown', 1, 1, 13], ['ArrowLeft', 0, -1, 14], ['ArrowRight', 0, 1, 15],
    ['Space', 9, 1, 0],
  ]
  const held = new Map()  // what holds (a key's code, the pointer, the pad) -> the button that it holds
  const swallowed = new Set()  // keys that are down, of which the page must not hear
  let presses = 0, newest = null, due = 0, seen = '', told = 0

  const on = (type, listen) => window.addEventListener(type, listen, {capture: true, signal: own.signal})
  const panels = () => [...document.querySelectorAll('.mtld-play')]
  const panelHere = () => panels().find(one => one.matches(':hover, :focus-within'))
  const panelOf = button => button.closest('.mtld-play')
  const lineOf = panel => panel.querySelector('.mtld-step').innerText
  const stepOf = panel => Number(lineOf(panel).match(/^step ([0-9]+)/)?.[1] ?? 0)
  const isLive = panel => panel.querySelector('.mtld-live')?.matches('.mod-active')
  const numberOf = button => [...button.parentNode.children].indexOf(button)
  const swallow = event => {
    event.preventDefault()
    event.stopImmediatePropagation()
  }

  function tell(panel) {
    const field = panel?.querySelector('.mtld-held input')
    if (!field) return  // the panel has gone
    const down = [newest, ...held.values()].filter(one => one && panel.contains(one))
    told = stepOf(panel)
    field.value = [presses, told, ...down.map(numberOf)].join(' ')
    field.dispatchEvent(new Event('input', {bubbles: true}))
  }
  function click(button, pause) {
    due = performance.now() + pause
    seen = lineOf(panelOf(button))
    button.click()
  }
  function press(holder, button) {
    held.set(holder, button)
    newest = button
    const live = isLive(panelOf(button))
    if (live) presses += 1
    tell(panelOf(button))
    if (!live) click(button, FIRST)
  }
  function release(holder) {
    const button = held.get(holder)
    if (held.delete(holder)) tell(panelOf(button))
  }

  on('keydown', event => {
    const panel = panelHere(), at = event.target
    const writing = at.closest?.('input, textarea, [contenteditable=true]')
    const choosing = at.closest?.('select, [role=slider]') && !panel?.querySelector('.mtld-hears:hover')
    const forBrowser = event.ctrlKey || event.metaKey || event.altKey || /^(Tab|F[0-9]+)$/.test(event.key)
    if (event.repeat && swallowed.has(event.code)) {  // also where the pointer has left the panel
      swallow(event)
      return
    }
    if (!panel || writing || choosing || forBrowser) return
    swallowed.add(event.code)
    if (event.key == 'Enter' && panel.contains(at)) {  // it presses what has the focus
      event.stopImmediatePropagation()
      return
    }
    swallow(event)
    if (held.has(event.code)) return
    const button = panel.querySelector(`button.mtld-key-${event.code}`)
    if (button?.closest('.mtld-actions')) press(event.code, button)
    else button?.click()
  })
  on('keyup', event => {
    if (swallowed.delete(event.code)) swallow(event)
    release(event.code)
  })
  on('pointerdown', event => {
    const button = event.target.closest?.('.mtld-play .mtld-actions button')
    if (button && event.button == 0) press('pointer', button)
  })
  for (const type of ['pointerup', 'pointercancel']) on(type, () => release('pointer'))
  on('click', event => {  // what the pointer pressed is done
    const button = event.target.closest?.('.mtld-play .mtld-actions button')
    if (button && event.isTrusted && event.detail) swallow(event)
  })
  on('blur', event => {
    if (event.target == window) [...held.keys()].forEach(release)
  })

  function readPad() {
    const pad = [...navigator.getGamepads?.() ?? []].find(one => one), panel = panelHere() ?? panels().at(-1)
    for (const [key, axis, sign, button] of PAD) {
      const holder = `pad ${key}`, down = pad && (pad.axes[axis] * sign > 0.5 || pad.buttons[button]?.pressed)
      const found = down && !held.has(holder) && panel?.querySelector(`.mtld-actions .mtld-key-${key}`)
      if (found) press(holder, found)
      if (!down) release(holder)
    }
  }
  function everyFrame() {
    if (own.signal.aborted) return
    requestAnimationFrame(everyFrame)
    readPad()
    const live = panels().find(isLive)
    if (live && stepOf(live) != told) tell(live)  // so that the kernel does not run ahead of the page
    const button = [...held.values()].filter(one => one.isConnected).at(-1)
    if (!button || isLive(panelOf(button)) || performance.now() < due) return
    if (lineOf(panelOf(button)) != seen) click(button, NEXT)  // not before the picture came
  }
  everyFrame()
})()
</script>"""
