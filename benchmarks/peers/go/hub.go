package main

import (
	"context"
	"encoding/json"
	"log"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/gorilla/websocket"
)

const (
	latestSQL = `SELECT e.order_id, e.version, e.type, e.status, e.previous_status,
			e.actor_id, e.actor_name, e.actor_role, e.note, e.updated_at
		FROM orders o JOIN order_events e ON e.order_id = o.id AND e.version = o.version
		WHERE o.id = $1 AND ($2 OR o.customer_id = $3)`
	missedSQL = `SELECT order_id, version, type, status, previous_status,
			actor_id, actor_name, actor_role, note, updated_at
		FROM order_events WHERE order_id = $1 AND version > $2 ORDER BY version`
	pingEvery = 25 * time.Second
	patience  = 20 * time.Second
)

// As in gorilla's chat example: a goroutine that reads and one that writes for each client.
type client struct {
	socket *websocket.Conn
	send   chan *websocket.PreparedMessage
}

type hub struct {
	mutex sync.Mutex
	rooms map[int64]map[*client]struct{}
}

func newHub() *hub { return &hub{rooms: map[int64]map[*client]struct{}{}} }

func (h *hub) join(id int64, c *client) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if h.rooms[id] == nil {
		h.rooms[id] = map[*client]struct{}{}
	}
	h.rooms[id][c] = struct{}{}
}

func (h *hub) leave(id int64, c *client) {
	h.mutex.Lock()
	defer h.mutex.Unlock()
	if _, ok := h.rooms[id][c]; ok {
		h.drop(id, c)
	}
}

func (h *hub) drop(id int64, c *client) {
	delete(h.rooms[id], c)
	if len(h.rooms[id]) == 0 {
		delete(h.rooms, id)
	}
	close(c.send)
}

// tell queues an event for everybody who watches its order; who does not keep up is dropped.
func (h *hub) tell(happened *event) {
	message, err := prepared(happened)
	if err != nil {
		log.Print(err)
		return
	}
	h.mutex.Lock()
	defer h.mutex.Unlock()
	for c := range h.rooms[happened.OrderID] {
		select {
		case c.send <- message:
		default:
			h.drop(happened.OrderID, c)
		}
	}
}

func prepared(happened *event) (*websocket.PreparedMessage, error) {
	text, err := json.Marshal(happened)
	if err != nil {
		return nil, err
	}
	return websocket.NewPreparedMessage(websocket.TextMessage, text)
}

var upgrader = websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}

func watch(c *gin.Context) {
	a := caller(c)
	id, ok := orderID(c)
	if !ok {
		return
	}
	latest, err := readEvents(c.Request.Context(), latestSQL, id, a.isStaff(), a.ID)
	if err != nil {
		fail(c, err)
		return
	}
	if len(latest) == 0 {
		refuse(c, http.StatusNotFound, "not_found")
		return
	}
	events := latest
	if after, err := strconv.Atoi(c.Query("after")); err == nil {
		if events, err = readEvents(c.Request.Context(), missedSQL, id, after); err != nil {
			fail(c, err)
			return
		}
	}
	socket, err := upgrader.Upgrade(c.Writer, c.Request, nil)
	if err != nil {
		return // it has answered
	}
	watcher := &client{socket, make(chan *websocket.PreparedMessage, 256)}
	for _, missed := range events {
		message, err := prepared(missed)
		if err != nil {
			log.Print(err)
			return
		}
		watcher.send <- message
	}
	watched.join(id, watcher)
	go watcher.write()
	go watcher.read(id)
}

func readEvents(ctx context.Context, sql string, parameters ...interface{}) ([]*event, error) {
	rows, err := pool.Query(ctx, sql, parameters...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var events []*event
	for rows.Next() {
		e := &event{}
		if err := rows.Scan(&e.OrderID, &e.Version, &e.Type, &e.Status, &e.PreviousStatus,
			&e.Actor.ID, &e.Actor.Name, &e.Actor.Role, &e.Note, &e.UpdatedAt); err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	return events, rows.Err()
}

// Writes a message at a time, and a ping now and then.
func (c *client) write() {
	ticker := time.NewTicker(pingEvery)
	defer func() {
		ticker.Stop()
		c.socket.Close()
	}()
	for {
		select {
		case message, ok := <-c.send:
			c.socket.SetWriteDeadline(time.Now().Add(patience))
			if !ok {
				c.socket.WriteMessage(websocket.CloseMessage, nil)
				return
			}
			if c.socket.WritePreparedMessage(message) != nil {
				return
			}
		case <-ticker.C:
			c.socket.SetWriteDeadline(time.Now().Add(patience))
			if c.socket.WriteMessage(websocket.PingMessage, nil) != nil {
				return
			}
		}
	}
}

// Reads until the client is gone: what it sends is ignored.
func (c *client) read(id int64) {
	defer func() {
		watched.leave(id, c)
		c.socket.Close()
	}()
	c.socket.SetReadLimit(512)
	c.socket.SetReadDeadline(time.Now().Add(pingEvery + patience))
	c.socket.SetPongHandler(func(string) error {
		return c.socket.SetReadDeadline(time.Now().Add(pingEvery + patience))
	})
	for {
		if _, _, err := c.socket.ReadMessage(); err != nil {
			return
		}
	}
}
